"""Networks as ONNX files: traced, translated op by op, named after their modules. Needs the extra `onnx`."""

from tinyres.onnx.export import export_onnx
from tinyres.onnx.trace import ExportError

__all__ = ["ExportError", "export_onnx"]
