// machine.h: what a measurement ran on, as llama-bench words it.
#pragma once

#include <string>

struct machine_info {
    std::string build_commit; // Names llama.cpp's commit.
    int         build_number;
    std::string cpus; // Lists the names of the devices, joined with ", ".
    std::string gpus;
    std::string backends; // Lists the names, joined with ","; it has "CPU" only where there is no other.
    std::string isa;      // Names the instruction set of the operator's CPU kernels.
    std::string features; // Lists what the CPU backend was compiled for, as ggml names it, joined with " ".
};

machine_info read_machine_info();
