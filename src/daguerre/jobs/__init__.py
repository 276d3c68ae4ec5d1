"""The jobs: submitting, waiting and cancelling; the bounded queue; feeding the engine; telling who listens."""
