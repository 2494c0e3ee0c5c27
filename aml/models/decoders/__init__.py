"""Decoders of CARIS and DETRIS: the layers behind their encoders."""
