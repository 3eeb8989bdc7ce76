"""What s3clip-calib is worth: methods, tracklets and layers beside float32."""
