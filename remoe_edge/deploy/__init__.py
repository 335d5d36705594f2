"""Deploy groups of experts as functions on Ray Serve, and lease them for conversations.

    packing      which planned functions share a deployed one
    record       what is deployed, as a file; everything else finds it by that
    worker_process, replica    a replica: the supervisor of a `remoe-edge worker`
    ray_side     the only process that imports Ray: deploys, tells, takes down, holds leases
    local_ray    Ray on this machine, started and stopped here
    waking, leases             which functions a prompt wakes, and the engine's peers of now
    use, metering              what was used of each function, and what that costs

docs/deploy.md. An engine's process never imports Ray.
"""
