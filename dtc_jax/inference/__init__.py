"""From images to images: read, cut a window, sample in one compiled function, put back."""
