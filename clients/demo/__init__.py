"""What the page of `demo` is told of a version, and how Python answers it."""
