"""What training costs as models and machines grow: measurements here, a cost model checked against them, and docs/scale.md."""
