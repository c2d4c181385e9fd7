#pragma once

namespace ao {

// Whether the module was compiled for the device that is current.
bool has_code_for_current_device();

}  // namespace ao
