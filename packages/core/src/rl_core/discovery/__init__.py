"""Finding installed plugins and the components they offer, without importing anything heavy."""
