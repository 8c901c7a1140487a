// machine.h: what a measurement ran on, as llama-bench words it.
#pragma once

#include <string>

struct machine_info {
    std::string build_commit; // of llama.cpp
    int         build_number;
    std::string cpus; // names of the devices, joined with ", "
    std::string gpus;
    std::string backends; // joined with ","; CPU only where there is no other
    std::string isa;      // of the operator's CPU kernels
};

machine_info read_machine_info();
