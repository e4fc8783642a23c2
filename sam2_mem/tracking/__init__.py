"""The frame loop, its tracks, and the predictors that wrap it."""
