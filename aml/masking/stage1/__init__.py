"""Run stage 1: what a model says of a picture and a sentence before a mask is drawn from it."""
