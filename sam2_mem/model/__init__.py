"""The network: tensors in, tensors out, nothing kept between frames."""
