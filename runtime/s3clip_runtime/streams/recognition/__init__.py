"""From looks at tracklets to sightings: the fused batch loop."""
