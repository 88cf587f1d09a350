"""Shared networks to plain ones, to ONNX and to loops, plain networks to shared ones, and the authors' checkpoints."""
