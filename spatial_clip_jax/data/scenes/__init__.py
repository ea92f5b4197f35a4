"""The bundled world: procedural pictures with exact masks, parts, attributes, relations and captions."""
