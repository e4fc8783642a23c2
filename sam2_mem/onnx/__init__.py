"""The network as four ONNX files, and a predictor that runs them by onnxruntime: ``pip install "sam2_mem[onnx]"``."""

from .export import export_network
from .manifest import Manifest
from .predictor import OnnxPredictor

__all__ = ["Manifest", "OnnxPredictor", "export_network"]
