"""One loaded model: settings, loading, answering, and what it cost. It knows no feature above it."""
