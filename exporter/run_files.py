"""Names of what a run leaves in its directory."""

RUNS = "runs"
CANDIDATE = "candidate"
REPORT = "verification.json"
TRAINED = "trained.json"
WEIGHTS = "weights.npz"
