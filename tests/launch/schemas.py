"""JSON schemas of what the manifests are, as their projects publish the fields; `strict` fields alone are allowed.

JobSet: jobset.x-k8s.io/v1alpha2, kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go, without the fields that
no manifest here uses. A Job's own schema is Kubernetes', by kubernetes-validate. SkyPilot: sky/utils/schemas.py of
0.14.1, likewise.
"""

from typing import Any

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}


def strict(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


RULE = strict(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"]},
    onJobFailureReasons=TEXTS,
    onJobFailureMessagePatterns=TEXTS,
    targetReplicatedJobs=TEXTS,
)
JOBSET = strict(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=strict(
        "name", name={"type": "string", "pattern": "^[a-z][-a-z0-9]{0,60}$"}, annotations={"type": "object"}
    ),
    spec=strict(
        "replicatedJobs",
        network=strict(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=TEXT),
        failurePolicy=strict(
            maxRestarts=NUMBER,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules={"type": "array", "items": RULE},
        ),
        replicatedJobs={
            "type": "array",
            "items": strict("name template", name=TEXT, replicas=NUMBER, template={"type": "object"}),
        },
    ),
)
EXIT_CODE = {"type": "integer", "minimum": 0, "maximum": 255}
SKY = strict(
    name=TEXT,
    workdir=TEXT,
    num_nodes=NUMBER,
    resources=strict(
        accelerators=TEXT,
        use_spot=FLAG,
        infra=TEXT,
        job_recovery=strict(
            strategy=TEXT,
            max_restarts_on_errors={"type": "integer", "minimum": 0},
            recover_on_exit_codes={"type": "array", "items": EXIT_CODE, "uniqueItems": True},
        ),
    ),
    envs={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    file_mounts={
        "type": "object",
        "additionalProperties": strict(name=TEXT, source=TEXT, mode={"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]}),
    },
    setup=TEXT,
    run=TEXT,
)
