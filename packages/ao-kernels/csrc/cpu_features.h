// Which instruction set the kernels of this process use.
#pragma once
#include <string>
#include <vector>

#include "isa.h"

namespace ao {

// Compiled in, supported by the processor and enabled by the operating system; best last.
std::vector<std::string> available_isas();

// The best available one, or the one named by the environment variable AO_KERNELS_ISA.
Isa current_isa();
const char* isa_name(Isa isa);

// Chooses one of available_isas() by name; throws std::invalid_argument for any other.
void set_isa(const std::string& name);

}  // namespace ao
