"What every module may use: errors, settings, files, progress, seeds and metrics."

from audiotag.core import no_telemetry  # keeps other libraries from sending statistics
