"""Finished students as ONNX and int8 files, each kept only when its check on real images passes.

Nothing here trains or prints; a new format goes beside onnx_file.py, with a check of its own.
"""
