"""One `EngineCoreClient` over engines that may die: requests outlive the engine they run in."""
