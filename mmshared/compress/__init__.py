"""A trained network to a budget. In the order of a run: calibration (the images), statistics (moments of the layers'
inputs), outputs and costs (what sharing of a group changes), plan, fit, norms, reconstruction, report. pipeline.py
calls them, files.py keeps what they make."""
