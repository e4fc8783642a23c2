"""Image trunks: what turns a picture into feature maps."""
