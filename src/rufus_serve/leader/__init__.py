"""vLLM's two processes over followers: `api` answers HTTP, `engine` schedules and samples."""
