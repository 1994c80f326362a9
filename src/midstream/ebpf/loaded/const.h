/* SPDX-License-Identifier: GPL-2.0-only */
/* const.h of the objects that midstream brings with it, for hosts without a compiler. Its names are those of the
 * generated one. The loader writes their values before the program is loaded (ebpf/constants.py). They never change
 * then, so the verifier knows them and removes what they rule out, as the compiler does with the other.
 */
#ifndef MIDSTREAM_CONST_H
#define MIDSTREAM_CONST_H

#include "hosts.h"

struct constants {
	__u32 hardworker_ip;
	__u8 hardworker_mac[ETH_ALEN];
	__u16 port;
	__u32 tos;
	__u32 mtu;
	__u32 size;
	__u32 logger_count;
	__u32 sensor_count;
	__u32 port_count;
	__u16 ports[MAX_STREAMS];
	struct logger loggers[MAX_LOGGERS];
	struct sensor sensors[MAX_SENSORS];
};

const volatile struct constants loaded_constants SEC(".rodata.constants");

/* Where they are. The compiler is not to know: of a constant it would take the zeros that are in the object. */
static __always_inline const struct constants *constants(void)
{
	const struct constants *found;

	asm volatile("%0 = %1 ll" : "=r"(found) : "i"(&loaded_constants));
	return found;
}

#define HARDWORKER_IP (constants()->hardworker_ip)
#define HARDWORKER_MAC (constants()->hardworker_mac)
#define MARK_TOS (constants()->tos)
#define MARK_PORT (constants()->port)
#define PORT_COUNT (constants()->port_count)
#define PORTS (constants()->ports)
#define MTU (constants()->mtu)
#define DATA_SIZE (constants()->size)
#define LOGGER_COUNT (constants()->logger_count)
#define LOGGERS (constants()->loggers)
#define SENSOR_COUNT (constants()->sensor_count)
#define SENSORS (constants()->sensors)

#endif
