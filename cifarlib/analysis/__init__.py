"""Statistics on frames: intervals, tests, judges and their calibration; no paper and no page."""
