"""Where sightings and frames go."""
