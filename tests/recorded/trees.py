"""What /proc and /sys hold on two kinds of machine, as far as telemetry reads them.

Written from the kernel's documentation of these files (hwmon, thermal, powercap, PSI, iostats) and
NVIDIA's of the Orin series; the values are made up, the forms are not.
"""

from __future__ import annotations

from pathlib import Path

_PROC = {
    "proc/stat": (
        "cpu  1000 50 300 8000 200 10 20 120 0 0\ncpu0 500 25 150 4000 100 5 10 60 0 0\nintr 1\n"
    ),
    "proc/meminfo": (
        "MemTotal:       16022184 kB\nMemFree:         2044204 kB\nMemAvailable:    9000000 kB\n"
        "Buffers:           91036 kB\nCached:          7012880 kB\nSwapCached:            0 kB\n"
        "SwapTotal:       8011088 kB\nSwapFree:        7990608 kB\n"
    ),
    "proc/pressure/memory": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=400000\n"
    ),
    "proc/pressure/io": (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=5000000\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=5000000\n"
    ),
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=70\n",
    "proc/diskstats": (
        " 259       0 nvme0n1 90000 10 7200000 40000 100 5 800 50 0 30000 40050 0 0 0 0 0 0\n"
        " 259       1 nvme0n1p1 80000 10 6400000 39000 90 5 720 45 0 29000 39045 0 0 0 0 0 0\n"
    ),
}

ORIN_NX = {
    **_PROC,
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\nCPU part\t: 0xd42\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5072\n",
    "sys/class/hwmon/hwmon1/curr1_input": "2000\n",
    "sys/class/hwmon/hwmon1/curr1_crit": "7784\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5064\n",
    "sys/class/hwmon/hwmon1/curr2_input": "1000\n",
    "sys/class/hwmon/hwmon1/in3_label": "VDD_SOC\n",
    "sys/class/hwmon/hwmon1/in3_input": "5072\n",
    "sys/class/hwmon/hwmon1/curr3_input": "500\n",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon1/in7_input": "17\n",
    "sys/class/hwmon/hwmon2/name": "pwmfan\n",
    "sys/class/hwmon/hwmon2/pwm1": "51\n",
    "sys/class/hwmon/hwmon3/name": "pwm_tach\n",
    "sys/class/hwmon/hwmon3/rpm": "1841\n",
    "sys/class/hwmon/hwmon4/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon4/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon4/oc3_event_cnt": "7\n",
    "sys/class/hwmon/hwmon5/name": "nvme\n",
    "sys/class/hwmon/hwmon5/temp1_input": "47850\n",
    "sys/class/hwmon/hwmon5/temp1_label": "Composite\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "49312\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "47500\n",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone8/temp": "50187\n",
    "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/17000000.gpu/device/load": "125\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "305937500\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1984000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1984000\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/cpuinfo_max_freq": "1984000\n",
    "var/lib/nvpmodel/status": "pmode:0003\n",
    "etc/nvpmodel.conf": (
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=3 NAME=25W >\n"
    ),
}

# The same board with everything wrong that a board can have: 8 GB, zram and swap on an SD card that the
# system lies on, nested limits, a CPU quota, slow power mode, little CMA left.
ORIN_NX_IN_TROUBLE = {
    **ORIN_NX,
    "proc/meminfo": (
        "MemTotal:        7620000 kB\nMemFree:          412000 kB\nMemAvailable:    2460000 kB\n"
        "Buffers:           91036 kB\nCached:          2112880 kB\nSwapCached:        12000 kB\n"
        "SwapTotal:       8004300 kB\nSwapFree:        7100000 kB\nCmaTotal:         262144 kB\n"
        "CmaFree:            8192 kB\nNvMapMemFree:     102400 kB\nNvMapMemUsed:     734003 kB\n"
    ),
    "proc/swaps": (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/zram0                              partition\t635000\t\t120000\t\t5\n"
        "/dev/zram1                              partition\t635000\t\t118000\t\t5\n"
        "/swapfile                               file\t\t4194300\t\t4096\t\t-2\n"
    ),
    "proc/self/mountinfo": (
        "24 1 179:1 / / rw,relatime shared:1 - ext4 /dev/mmcblk1p1 rw\n"
        "30 24 259:1 / /data rw,relatime shared:9 - ext4 /dev/nvme0n1p1 rw\n"
    ),
    "proc/self/cgroup": "0::/system.slice/remoe-edge.service\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "sys/fs/cgroup/system.slice/memory.max": f"{3 << 30}\n",
    "sys/fs/cgroup/system.slice/memory.high": "max\n",
    "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
    "sys/fs/cgroup/system.slice/remoe-edge.service/memory.max": "max\n",
    "sys/fs/cgroup/system.slice/remoe-edge.service/memory.high": f"{2 << 30}\n",
    "sys/fs/cgroup/system.slice/remoe-edge.service/cpu.max": "300000 100000\n",
    "sys/fs/cgroup/system.slice/remoe-edge.service/cpuset.cpus.effective": "0-5\n",
    "sys/devices/system/cpu/online": "0-7\n",
    "sys/devices/system/cpu/cpu4/cpu_capacity": "400\n",
    "sys/devices/system/cpu/cpu5/cpu_capacity": "400\n",
    **{f"sys/devices/system/cpu/cpu{n}/cpu_capacity": "1024\n" for n in range(4)},
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_min_freq": "729600\n",
    "sys/class/block/mmcblk1/device/type": "SD\n",
    "sys/class/block/mmcblk0/device/type": "MMC\n",
    "sys/class/block/sda/removable": "1\n",
    "sys/class/block/sdb/removable": "0\n",
}

X86 = {
    **_PROC,
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: A Processor @ 3.00GHz\ncpu MHz\t\t: 2999.998\n",
    "sys/class/powercap/intel-rapl/enabled": "1\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "262142000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:1/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "5000000\n",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "9000000\n",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850\n",
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon0/temp1_input": "61000\n",
    "sys/class/hwmon/hwmon0/temp2_label": "Core 0\n",
    "sys/class/hwmon/hwmon0/temp2_input": "60000\n",
    "sys/class/hwmon/hwmon1/name": "amdgpu\n",
    "sys/class/hwmon/hwmon1/power1_average": "33000000\n",
    "sys/class/hwmon/hwmon1/power1_label": "slowPPT\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
}


def plant(root: Path, tree: dict[str, str]) -> Path:
    """Write a tree below `root`."""
    for name, text in tree.items():
        change(root, name, text)
    return root


def change(root: Path, name: str, text: str | int) -> None:
    """Give one file other content, in place: it may be held open."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))
