"""Every copy against the in-process model: measured, judged, and checked again later."""
