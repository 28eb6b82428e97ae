"""The run folder: what it holds, written so that nothing is lost or half written, and loaded again."""
