"""What this machine is, what of s3clip works on it, what does not, and the command that mends it.

Only the check of a bundle needs more than the standard library: a doctor must not fall ill with the patient.
"""
