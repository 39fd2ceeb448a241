"""Sources in JSON: lines, arrays, and manifests of audio files."""
