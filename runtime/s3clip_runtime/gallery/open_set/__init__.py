"""When a best match is believed: thresholds that were calibrated from data, and the decision by them."""
