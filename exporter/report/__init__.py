"""What a version shows of itself: one HTML file without network, and two versions side by side."""
