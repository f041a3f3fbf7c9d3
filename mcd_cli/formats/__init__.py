"""Exports finished students as ONNX and int8 files, and keeps a file only if its check on real images passes.

Nothing here trains or prints. A new format gets a module beside onnx_file.py, with its own check.
"""
