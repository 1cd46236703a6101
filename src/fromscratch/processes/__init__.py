"""Several processes that train one model: how they start, agree, and fail together."""
