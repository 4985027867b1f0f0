"""Files of requests in OpenAI's batch format: read, run to the end, and never done twice."""
