#!/usr/bin/env bash
# What jetson-containers runs after a build: the installation works, and the shipped model answers.
set -euo pipefail
remoe-edge doctor
remoe-edge chat /opt/remoe-edge-src/models/remoe-small-q8_0.gguf -p "What is the sea?" -n 8 --temp 0
