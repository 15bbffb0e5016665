"""A vendor's chip as a device: what is sent is recorded before it is sent, and never sent twice."""
