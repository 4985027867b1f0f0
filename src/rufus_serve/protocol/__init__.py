"""What crosses process borders: messages, their encoding, and the group's state machine."""
