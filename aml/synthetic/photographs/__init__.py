"""Compose scenes from the object cut-outs of annotated photographs."""
