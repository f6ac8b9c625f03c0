"""Object detectors that find the same boxes however the image is turned or mirrored."""
