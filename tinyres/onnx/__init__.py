"""Networks as ONNX files: traced, translated op by op, named after their modules. Needs the extra `onnx`."""

from tinyres.onnx.export import ExportError, export_onnx

__all__ = ["ExportError", "export_onnx"]
