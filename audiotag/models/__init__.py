"Networks and the settings that build them."
