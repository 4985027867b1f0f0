"""The API process: our gateway before vLLM's OpenAI server, and its link to the supervisor."""
