"""The owner of the group and of the leader process; imports no vllm and no torch."""
