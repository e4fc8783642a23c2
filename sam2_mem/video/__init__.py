"""Frame sources and mask writers, as iterators."""
