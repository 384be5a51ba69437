"""What a version holds, made from a trained model: SavedModel, TFLite variants, golden examples."""
